//! A raw connection to the daemon's socket: JSON-RPC 2.0, one document a line, without the product's client in between.
//! For what the command line never sends, and for what it does not show.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::Daemon;

/// One connection.
#[derive(Debug)]
pub struct Wire {
    stream: BufReader<UnixStream>,
    next: u64,
}

impl Wire {
    /// Connects.
    #[must_use]
    pub fn connect(daemon: &Daemon) -> Self {
        Self::open(&daemon.socket()).expect("connect to the daemon")
    }

    /// Connects to a daemon that may not be there.
    ///
    /// # Errors
    /// When it is not.
    pub fn open(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set a timeout");
        stream
            .set_write_timeout(Some(Duration::from_secs(60)))
            .expect("set a timeout");
        Ok(Self {
            stream: BufReader::new(stream),
            next: 1,
        })
    }

    /// Calls a method and waits for its answer; an error answer is the error object.
    ///
    /// # Errors
    /// What the daemon answered instead of a result.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        self.ask(method, params)
            .expect("an answer before the end of the connection")
    }

    /// Calls a method that begins an operation and follows it to its end. `None`: the daemon went away before.
    pub fn operate(&mut self, method: &str, params: &Value) -> Option<Result<Value, Value>> {
        let begun = match self.ask(method, params)? {
            Ok(operation) => operation,
            Err(error) => return Some(Err(error)),
        };
        self.follow(&begun)
    }

    /// Follows an operation to its end, which is its record: an error when it did not succeed. `None`: the daemon went
    /// away before.
    pub fn follow(&mut self, operation: &Value) -> Option<Result<Value, Value>> {
        self.follow_each(operation, |_| ())
    }

    /// As [`Self::follow`], told of each of its changes as it is heard. What the daemon changes before it has sent the change
    /// before is heard as one.
    pub fn follow_each(
        &mut self,
        operation: &Value,
        mut heard: impl FnMut(&Value),
    ) -> Option<Result<Value, Value>> {
        if let Err(error) = self.ask("op.watch", &json!({"operation": operation["id"]}))? {
            return Some(Err(error));
        }
        loop {
            let mut event = self.receive()?;
            let now = event["params"]["result"].take();
            heard(&now);
            match now["state"].as_str() {
                Some("running" | "cancelling") => {}
                Some("succeeded") => return Some(Ok(now)),
                Some(_) => return Some(Err(now)),
                // The subscription's own end, and whatever else is none of an operation's business.
                None => {}
            }
        }
    }

    /// Calls a method and waits for its answer; an error answer is the error object. `None`: the daemon went away before.
    pub fn ask(&mut self, method: &str, params: &Value) -> Option<Result<Value, Value>> {
        let id = self.next;
        self.next += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.try_send(request.to_string().as_bytes()).ok()?;
        loop {
            let mut answer = self.receive()?;
            // Notifications of a subscription come between.
            if answer["id"] == json!(id) {
                return Some(match answer.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(answer["result"].take()),
                });
            }
        }
    }

    /// Sends bytes and a newline.
    pub fn send(&mut self, line: &[u8]) {
        self.try_send(line).expect("send to the daemon");
    }

    /// Sends bytes and a newline to a daemon that may have hung up.
    ///
    /// # Errors
    /// When it has.
    pub fn try_send(&mut self, line: &[u8]) -> std::io::Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(line)?;
        stream.write_all(b"\n")
    }

    /// The next document; `None` when the daemon has closed the connection.
    pub fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            // A line without its end is the last word of a daemon that died.
            Ok(_) if !line.ends_with('\n') => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("no JSON ({e}): {line}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("failed to read from the daemon: {error}"),
        }
    }
}
