//! What machines are called on the network: the zone, as it is now and at each change.
//!
//! Place: the network publishes it whenever a machine comes, goes or is changed; whoever answers for names (the DNS
//! server) subscribes. Neither queries nor answers are known here.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::watch;

use super::subnet::Subnet;

/// A machine with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    /// The machine's name: a label in lower case, of at most 63 characters.
    pub(crate) name: String,
    /// Its address, which it keeps for life.
    pub(crate) address: Ipv4Addr,
    /// Sees other machines that have this too, and is seen by them.
    pub(crate) guests: bool,
    /// May reach more than the host and other machines, and so may ask for others' names.
    pub(crate) out: bool,
}

/// All names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    /// The machines' network; its first address is the bridge's.
    pub(crate) subnet: Subnet,
    /// By name. Machines that do not run have their names too.
    pub(crate) machines: Vec<Named>,
}

/// The zone, published.
#[derive(Debug)]
pub(crate) struct Names(watch::Sender<Arc<Zone>>);

impl Names {
    /// Without machines.
    pub(crate) fn new(subnet: Subnet) -> Self {
        let machines = Vec::new();
        Self(watch::Sender::new(Arc::new(Zone { subnet, machines })))
    }

    /// The zone as it is, and word of each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Zone>> {
        self.0.subscribe()
    }

    /// These are the machines now. What is the same as before is no change.
    pub(crate) fn publish(&self, mut machines: Vec<Named>) {
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        self.0.send_if_modified(|zone| {
            let changed = zone.machines != machines;
            if changed {
                let subnet = zone.subnet;
                *zone = Arc::new(Zone { subnet, machines });
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_and_the_same_again_is_not() {
        let names = Names::new(Subnet::DEFAULT);
        let mut watching = names.subscribe();
        let named = |name: &str, last| Named {
            name: name.to_owned(),
            address: Ipv4Addr::new(10, 209, 0, last),
            guests: false,
            out: true,
        };
        names.publish(vec![named("web", 3), named("dev", 2)]);
        assert!(watching.has_changed().unwrap());
        assert_eq!(watching.borrow_and_update().machines[0].name, "dev");
        names.publish(vec![named("dev", 2), named("web", 3)]);
        assert!(!watching.has_changed().unwrap());
    }
}
