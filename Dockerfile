# The command line in a container:
#
#   docker build -t sparsevideo .
#   docker run --rm -v "$PWD:/data" sparsevideo predict runs/own_videos video.mp4
#
# The installed PyTorch has CUDA libraries, so an NVIDIA driver on the machine is enough (docker run --gpus all). Another
# base, also without Python: --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04. Extras: --build-arg EXTRAS=export,web
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRAS=export
COPY . /source
RUN sh /source/tools/install_container.sh /source /opt/sparsevideo "${EXTRAS}" && rm -r /source
ENV PATH=/opt/sparsevideo/bin:$PATH
WORKDIR /data
ENTRYPOINT ["sparsevideo"]
