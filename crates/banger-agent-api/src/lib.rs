//! The guest protocol: schema, client and the hybrid-vsock dialer.
