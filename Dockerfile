# docker build -t minikits . (docs/using.md); TORCH_INDEX: where pip finds torch, if not where it looks of itself
FROM python:3.12-slim
ARG TORCH_INDEX
WORKDIR /minikits
COPY . .
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} --constraint constraints.txt --editable '.[figures]'
ENTRYPOINT ["python"]
CMD ["predict.py", "--help"]
