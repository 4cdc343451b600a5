//! The host's resolver, systemd-resolved: which server it asks for which names, per network interface, over D-Bus.
//!
//! The interface is `org.freedesktop.resolve1.Manager` (org.freedesktop.resolve1(5)). What is set here is neither kept on a
//! disk nor over a restart of resolved, and goes with the interface; so whoever wants it to stay follows
//! [`Resolved::starts`] and sets it again. resolved is never started by what is asked here.

use std::net::Ipv4Addr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::fdo;

const SERVICE: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const INTERFACE: &str = "org.freedesktop.resolve1.Manager";

const BUS: &str = "org.freedesktop.DBus";

/// Address families as resolved has them: the kernel's numbers (address_families(7)).
const INET: i32 = 2;

/// How long any answer may take: resolved sets what it is told without asking anybody but polkit.
const PATIENCE: Duration = Duration::from_secs(5);

/// Events that wait to be read. More than one means the same as one.
const EVENTS: NonZeroUsize = NonZeroUsize::new(4).expect("it is not zero");

/// How much of the other side's words is kept.
const WORDS: usize = 400;

/// Why resolved could not be told something.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    /// There is no message bus, or it does not talk to us.
    #[error("the system's message bus cannot be reached: {words}")]
    NoBus {
        /// The library's words.
        words: String,
    },
    /// Nobody provides the service now.
    #[error("systemd-resolved does not run")]
    NotRunning,
    /// We may not.
    #[error("systemd-resolved does not let this user change its settings: {words}")]
    Denied {
        /// Its words.
        words: String,
    },
    /// It answered with an error, or not in time.
    #[error("systemd-resolved failed to do {method}: {words}")]
    Failed {
        /// The method of its interface.
        method: &'static str,
        /// Its words.
        words: String,
    },
}

/// What resolved is to do with names, on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// The server that is asked.
    pub server: Ipv4Addr,
    /// For these domains, and all below them; nobody else is asked for them. Without a dot at the end.
    pub domains: Vec<String>,
}

/// A connection to the bus.
#[derive(Debug, Clone)]
pub struct Resolved {
    connection: zbus::Connection,
}

impl Resolved {
    /// Connects to the system's bus, or to the one whose socket that is. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ResolvedError::NoBus`]. That resolved does not run is none: it may be started later.
    pub async fn connect(socket: Option<&Path>) -> Result<Self, ResolvedError> {
        let builder = match socket {
            None => zbus::connection::Builder::system(),
            Some(path) => zbus::connection::Builder::address(&*format!("unix:path={}", path.display())),
        };
        let building = builder.method_timeout(PATIENCE).build();
        let connection = match tokio::time::timeout(PATIENCE, building).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => return Err(ResolvedError::NoBus { words: words(&e) }),
            Err(_) => {
                return Err(ResolvedError::NoBus {
                    words: "it does not answer".to_owned(),
                });
            }
        };
        Ok(Self { connection })
    }

    /// Whether it runs now.
    ///
    /// # Errors
    /// [`ResolvedError::NoBus`].
    pub async fn runs(&self) -> Result<bool, ResolvedError> {
        let no_bus = |e: zbus::Error| ResolvedError::NoBus { words: words(&e) };
        let reply = self
            .connection
            .call_method(
                Some(BUS),
                "/org/freedesktop/DBus",
                Some(BUS),
                "NameHasOwner",
                &(SERVICE,),
            )
            .await
            .map_err(no_bus)?;
        reply.body().deserialize().map_err(no_bus)
    }

    /// Makes it ask `routing.server` for `routing.domains`, and for nothing else, on an interface that is there and up.
    /// That server's word is taken without signatures, and nobody on that interface is asked by multicast.
    ///
    /// # Errors
    /// All of [`ResolvedError`]; then some of it may have been set, and [`Self::revert`] takes it back.
    pub async fn route(&self, interface: u32, routing: &Routing) -> Result<(), ResolvedError> {
        self.there().await?;
        let index = index(interface);
        // A vector: an array would be sent as a structure.
        let servers = vec![(INET, routing.server.octets().to_vec())];
        // With `true` a domain is for choosing the server only, and is not added to names without a dot.
        let domains: Vec<(&str, bool)> = routing.domains.iter().map(|d| (d.as_str(), true)).collect();
        self.set("SetLinkDefaultRoute", &(index, false)).await?;
        self.set("SetLinkDNSSEC", &(index, "no")).await?;
        self.set("SetLinkLLMNR", &(index, "no")).await?;
        self.set("SetLinkMulticastDNS", &(index, "no")).await?;
        self.set("SetLinkDomains", &(index, domains)).await?;
        self.set("SetLinkDNS", &(index, servers)).await
    }

    /// Takes back what was set for an interface. One that is gone, or a resolved that does not run, knows nothing of it.
    ///
    /// # Errors
    /// [`ResolvedError::NoBus`], [`ResolvedError::Denied`], [`ResolvedError::Failed`].
    pub async fn revert(&self, interface: u32) -> Result<(), ResolvedError> {
        match self.there().await {
            Ok(()) => {}
            Err(ResolvedError::NotRunning) => return Ok(()),
            Err(e) => return Err(e),
        }
        let body = (index(interface),);
        let reply = self.call("RevertLink", &body).await;
        match reply {
            Err(zbus::Error::MethodError(name, _, _)) if name.as_str().ends_with(".NoSuchLink") => Ok(()),
            other => finish("RevertLink", other),
        }
    }

    /// Each time that it begins to run from now on. `None`: the bus has gone away, and nothing more will come.
    ///
    /// # Errors
    /// [`ResolvedError::NoBus`].
    pub async fn starts(&self) -> Result<Starts, ResolvedError> {
        let rule = format!(
            "type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{SERVICE}'"
        );
        let subscribing = zbus::MessageStream::for_match_rule(rule.as_str(), &self.connection, Some(EVENTS));
        let stream = tokio::time::timeout(PATIENCE, subscribing).await;
        match stream {
            Ok(Ok(stream)) => Ok(Starts { stream }),
            Ok(Err(e)) => Err(ResolvedError::NoBus { words: words(&e) }),
            Err(_) => Err(ResolvedError::NoBus {
                words: "it does not answer".to_owned(),
            }),
        }
    }

    async fn there(&self) -> Result<(), ResolvedError> {
        match self.runs().await? {
            true => Ok(()),
            false => Err(ResolvedError::NotRunning),
        }
    }

    async fn set<B>(&self, method: &'static str, body: &B) -> Result<(), ResolvedError>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        finish(method, self.call(method, body).await)
    }

    async fn call<B>(&self, method: &'static str, body: &B) -> zbus::Result<zbus::Message>
    where
        B: serde::Serialize + zbus::zvariant::DynamicType,
    {
        self.connection
            .call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body)
            .await
    }
}

/// See [`Resolved::starts`].
#[derive(Debug)]
pub struct Starts {
    stream: zbus::MessageStream,
}

impl Starts {
    /// Waits for the next. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<()> {
        while let Some(message) = self.stream.next().await {
            // Name, former owner, new owner; empty: none.
            let body = message.ok()?.body();
            if let Ok((_, _, owner)) = body.deserialize::<(&str, &str, &str)>()
                && !owner.is_empty()
            {
                return Some(());
            }
        }
        None
    }
}

fn index(interface: u32) -> i32 {
    // The kernel's are positive and signed.
    i32::try_from(interface).unwrap_or(i32::MAX)
}

fn finish(method: &'static str, reply: zbus::Result<zbus::Message>) -> Result<(), ResolvedError> {
    let Err(error) = reply else { return Ok(()) };
    let said = words(&error);
    let standard = if let zbus::Error::FDO(standard) = &error {
        Some(&**standard)
    } else {
        None
    };
    Err(match standard {
        Some(error) if is_denial(error) => ResolvedError::Denied { words: said },
        Some(error) if is_absence(error) => ResolvedError::NotRunning,
        Some(_) | None => ResolvedError::Failed { method, words: said },
    })
}

fn is_denial(error: &fdo::Error) -> bool {
    matches!(
        error,
        fdo::Error::AccessDenied(_)
            | fdo::Error::AuthFailed(_)
            | fdo::Error::InteractiveAuthorizationRequired(_)
    )
}

fn is_absence(error: &fdo::Error) -> bool {
    matches!(
        error,
        fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) | fdo::Error::NoReply(_)
    )
}

/// An error in words, cut to a bound: some of them are somebody else's.
fn words(error: &zbus::Error) -> String {
    error
        .to_string()
        .chars()
        .filter(|c| !c.is_control())
        .take(WORDS)
        .collect()
}
