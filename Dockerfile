# Two images of one source, each with what its part needs and nothing else:
#   docker build --target gateway -t minigpt-gateway:0.1.0 .
#   docker build --target worker -t minigpt-worker:0.1.0 --build-arg INDEX=cu130 .
# INDEX is torch's build, as in the Makefile.

ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS requirements
COPY pyproject.toml .
RUN python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    open("gateway.txt", "w").write("\n".join(project["dependencies"])); \
    open("worker.txt", "w").write("\n".join(project["optional-dependencies"]["engine"]))'

# What changes seldom: the libraries, in a virtual environment that the images copy as it is.
FROM ${BASE} AS gateway-libraries
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/minigpt/bin:$PATH
RUN python3 -m venv /opt/minigpt
COPY --from=requirements gateway.txt .
COPY requirements.lock .
RUN pip install -c requirements.lock -r gateway.txt

FROM gateway-libraries AS worker-libraries
ARG INDEX=cpu
COPY --from=requirements worker.txt .
RUN pip install --extra-index-url "https://download.pytorch.org/whl/${INDEX}" -c requirements.lock -r worker.txt

# What changes often: the package, with the kernels for every kind of processor.
FROM gateway-libraries AS package
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN pip install --no-deps --prefix /package .

FROM ${BASE} AS runtime
RUN groupadd --gid 10001 minigpt \
    && useradd --uid 10001 --gid minigpt --home-dir /tmp --no-create-home --shell /usr/sbin/nologin minigpt
ENV PATH=/opt/minigpt/bin:$PATH
STOPSIGNAL SIGTERM
ENTRYPOINT ["minigpt"]

FROM runtime AS gateway
COPY --from=gateway-libraries /opt/minigpt /opt/minigpt
COPY --from=package /package /opt/minigpt
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=3)"]
CMD ["gateway", "--host=0.0.0.0"]

FROM runtime AS worker
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=worker-libraries /opt/minigpt /opt/minigpt
COPY --from=package /package /opt/minigpt
USER 10001:10001
EXPOSE 8001
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8001/livez', timeout=3)"]
CMD ["worker", "--metrics-host=0.0.0.0", "--metrics-port=8001"]
