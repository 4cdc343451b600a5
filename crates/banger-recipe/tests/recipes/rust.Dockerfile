FROM rust:1.76 AS chef
RUN cargo install cargo-chef --locked
WORKDIR /app

FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
ARG PROFILE=release
COPY --from=planner /app/recipe.json recipe.json
RUN cargo chef cook --$PROFILE
COPY . .
RUN cargo build --$PROFILE

FROM debian:bookworm-slim AS runtime
COPY --link --from=builder /app/target/release/app /usr/local/bin
HEALTHCHECK NONE
ENTRYPOINT ["/usr/local/bin/app"]
