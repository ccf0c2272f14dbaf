# noisystudent and its extra `export`, on a CPU or on an NVIDIA GPU:
#
#   docker build -t noisystudent .
#   docker build -t noisystudent --build-arg TORCH=cu130 .
#   docker run --rm --shm-size 2g --user "$(id -u):$(id -g)" -v "$PWD:/work" noisystudent doctor     (GPU: --gpus all)
FROM python:3.13-slim

# Which wheels of torch: cpu, or a version of CUDA. They bring its libraries, and the machine has the driver.
ARG TORCH=cpu
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/$TORCH" torch==2.14.1 torchvision==0.29.1

COPY pyproject.toml README.md LICENSE /src/
COPY noisystudent /src/noisystudent
RUN pip install --no-cache-dir "/src[export]" && rm -r /src

# The user of --user has no name and no home: torch needs the one, downloaded weights the other.
ENV USER=noisystudent HOME=/tmp
WORKDIR /work
USER nobody
ENTRYPOINT ["noisystudent"]
CMD ["--help"]
