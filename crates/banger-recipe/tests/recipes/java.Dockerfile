FROM maven:3-eclipse-temurin-21 AS build
COPY pom.xml /home/app/
COPY src /home/app/src
RUN mvn -f /home/app/pom.xml clean package

FROM eclipse-temurin:21-jre
MAINTAINER Somebody <somebody@example.org>
ARG JAR_FILE=target/*.jar
ENV JAVA_OPTS="-Xmx512m -Dfile.encoding=UTF-8"
COPY --from=build /home/app/${JAR_FILE} /app/app.jar
ENTRYPOINT exec java $JAVA_OPTS -jar /app/app.jar
