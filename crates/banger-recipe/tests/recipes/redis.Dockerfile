FROM alpine:3.19
RUN set -eux; \
# alpine already has a gid 999, so we'll use the next id
	addgroup -S -g 1000 redis; \
	adduser -S -G redis -u 999 redis
ENV REDIS_VERSION=7.2.4
ENV REDIS_DOWNLOAD_URL=http://download.redis.io/releases/redis-${REDIS_VERSION}.tar.gz
RUN set -eux; \
	wget -O redis.tar.gz "$REDIS_DOWNLOAD_URL"; \
	mkdir /data && chown redis:redis /data
VOLUME ["/data", "/conf dir"]
WORKDIR /data
EXPOSE 6379
CMD ["redis-server"]
