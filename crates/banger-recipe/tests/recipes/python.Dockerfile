FROM python:3.12-slim
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH="/venv/bin:$PATH"

RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      build-essential \

      libpq-dev \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf,required=true,mode=0444 pip install -r requirements.txt
WORKDIR /srv
WORKDIR app
COPY --chmod=755 entrypoint.sh /usr/local/bin/
COPY ["requirements file.txt", "src/", "./"]
ENTRYPOINT ["entrypoint.sh"]
CMD gunicorn --bind 0.0.0.0:8000 app:app
