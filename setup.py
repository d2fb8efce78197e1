from setuptools import setup

setup(
    name="minikits", version="0.1.0", license="MIT", packages=["minikits"], python_requires=">=3.11",
    description="The KiTS19-winning 3D U-Nets as a small reference implementation",
    install_requires=["torch>=2.10", "numpy", "nibabel"],
    extras_require={"figures": ["matplotlib"],
                    "test": ["pytest", "scipy", "scikit-image", "scikit-learn", "hypothesis", "ruff"]})
