ARG BASE=debian
ARG TAG=${BASE:+12}
FROM ${BASE}:${TAG:-11}
ARG BASE
ARG NAME=${BASE}-app
ENV ABC=hello
ENV ABC=bye DEF=$ABC
ENV GHI=$DEF SINGLE='$ABC' DOUBLE="$ABC \"q\"" ESC=\$ABC SPACED=a\ b
ARG ABC=hidden
LABEL "com.example.vendor"="ACME $NAME" description="two \
lines" empty=
WORKDIR /${UNSET-one}/${EMPTY:-two}/${ABC:+three}/${UNSET:+four}
USER ${NAME}
