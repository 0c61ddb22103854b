#!/bin/sh
# Install the package into a private environment, and try it: the steps of the Dockerfile.
#
#   sh tools/install_container.sh SOURCE ENVIRONMENT [EXTRAS]
#
# SOURCE is the folder of the repository or a wheel, EXTRAS a list such as export,web. Where Python is missing, it is
# installed with apt-get.
set -eu
source=$1 environment=$2 extras=${3:-}
if ! command -v python3 > /dev/null; then
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends python3 python3-venv
    rm -rf /var/lib/apt/lists/*
fi
python3 -m venv "$environment"
"$environment/bin/python" -m pip install --quiet --no-cache-dir "$source${extras:+[$extras]}"
"$environment/bin/sparsevideo" models list
