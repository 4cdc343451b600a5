# syntax=docker/dockerfile:1.7
FROM alpine:3.19
ARG GREETING=hello
RUN <<EOT
apk add --no-cache python3
echo "$GREETING" > /greeting
EOT
RUN <<EOT python3
EOT
RUN python3 <<PY && echo done
print("a \ b")
PY
RUN <<-SCRIPT
	#!/usr/bin/env python3
	print("tabs are gone")
	SCRIPT
COPY <<nginx.conf <<"literal.conf" /etc/conf/
server $GREETING "quoted" \$literal
nginx.conf
server $GREETING
literal.conf
COPY --chmod=0600 <<EOT /etc/app.conf
one file
EOT
