FROM debian:bookworm-slim
LABEL maintainer="NGINX Docker Maintainers <docker-maint@nginx.com>" org.opencontainers.image.title='web server'
ENV NGINX_VERSION 1.25.4
ENV PKG_RELEASE   1~bookworm
RUN set -x \
    && groupadd --system --gid 101 nginx \
    && useradd --system --gid nginx --no-create-home --home /nonexistent --comment "nginx user" --shell /bin/false --uid 101 nginx \
    && echo "deb http://nginx.org/packages/mainline/debian/ bookworm nginx" >> /etc/apt/sources.list.d/nginx.list \
    && nginxPackages=" nginx=${NGINX_VERSION}-${PKG_RELEASE} " \
    && ln -sf /dev/stdout /var/log/nginx/access.log
COPY docker-entrypoint.sh /
COPY *.envsh /docker-entrypoint.d/
ENTRYPOINT ["/docker-entrypoint.sh"]
EXPOSE 80 443/tcp 443/udp
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
