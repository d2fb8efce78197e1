# A CPU image: docker build -t minikits . (docs/using.md); for a GPU, another index of PyTorch's wheels
FROM python:3.12-slim
WORKDIR /minikits
COPY constraints.txt ./
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[figures]'
ENTRYPOINT ["python"]
CMD ["predict.py", "--help"]
