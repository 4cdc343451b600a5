# escape=`

FROM debian:12
ENV WHERE="C:\\dir" `
    NEXT=a` b
RUN echo one `
  two
COPY a.txt c:\dir\
