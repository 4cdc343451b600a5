from ubuntu:22.04 as Base
run apt-get update && apt-get install -y curl
FROM base as tools
copy --from=BASE /etc/os-release /
From tools
CMD []
ENTRYPOINT ["/bin/bash"]
