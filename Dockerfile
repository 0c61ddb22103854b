# The command line in a container:
#
#   docker build -t sparsevideo .
#   docker run --rm -v "$PWD:/data" sparsevideo predict runs/own_videos video.mp4
#
# The installed PyTorch has CUDA libraries, so an NVIDIA driver on the machine is enough (docker run --gpus all). BASE is
# another Debian or Ubuntu image, such as one of nvidia/cuda, also without Python; EXTRAS is a list such as export,web.
ARG BASE=python:3.12-slim
FROM ${BASE}
ARG EXTRAS=export
COPY . /source
RUN sh /source/tools/install_container.sh /source /opt/sparsevideo "${EXTRAS}" && rm -r /source
ENV PATH=/opt/sparsevideo/bin:$PATH
WORKDIR /data
ENTRYPOINT ["sparsevideo"]
