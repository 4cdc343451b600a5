FROM php:8.3-apache
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN docker-php-ext-install pdo_mysql | tee /tmp/log
COPY --from=composer:2 /usr/bin/composer /usr/bin/composer
WORKDIR ${APACHE_DOCUMENT_ROOT:-/var/www/html}
COPY --chown=${APP_USER:-www-data}:${APP_GROUP:-www-data} . .
ADD vendor.tar.gz ./vendor
ADD --chmod=0644 php.ini-production /usr/local/etc/php/php.ini
RUN ["composer", "install", "--no-dev"]
