//! Datagrams to a published port. Whoever sends gets a flow of their own into the guest, with a port of its own there, so
//! that answers find their way back; a flow without traffic ends.
//!
//! ```text
//! socket ─ serve() ─► flows' table ─ a queue for each ─► Flow::carry() ─► guest
//!    ▲                                                        │
//!    └──────────────────────── answers ───────────────────────┘
//! ```
//!
//! What cannot be taken at once is lost, as datagrams are: queues are short, and all of a machine's hold a few MiB. The
//! table of flows is the machine's, apart from its connections: whoever sends from very many ports takes flows from the
//! idle, and connections from nobody.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use banger_agent_api::{AgentClient, AgentError, ForwardClosed, ForwardInput, MAX_DATAGRAM, Transport};
use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::{Guest, tell};

/// Flows of one machine at a time, below what its agent allows: one that has just ended may not have ended there yet.
pub(super) const MAX_FLOWS: usize = 96;

/// A flow ends after this long without a datagram either way.
const IDLE: Duration = Duration::from_secs(60);

/// The flow that has been idle longest makes room for a new one, but not one that was in use a moment ago: among very many
/// senders some get through all of what they have to say, instead of all of them a part.
const SPARED: Duration = Duration::from_secs(1);

/// Datagrams that wait for one flow's way into the guest, while it is being made above all; and their bytes, of all flows
/// of a machine.
const QUEUE: usize = 32;
const QUEUED_BYTES: usize = 4 << 20;

/// For a flow to be there.
const CONNECTING: Duration = Duration::from_secs(30);

/// After a failed receive.
const PAUSE: Duration = Duration::from_millis(100);

/// A datagram and its share of [`QUEUED_BYTES`].
type Queued = (Bytes, OwnedSemaphorePermit);

/// Whose a flow is: the host's port and who sends to it.
type Ends = (SocketAddr, SocketAddr);

/// The flows of one machine, through all its published ports. The lock is a leaf, and nothing waits under it.
pub(super) struct Flows {
    table: Mutex<Table>,
    queued: Arc<Semaphore>,
}

#[derive(Default)]
struct Table {
    flows: HashMap<Ends, Entry>,
    /// How many there have been: tells a flow from a later one of the same ends.
    made: u64,
}

struct Entry {
    number: u64,
    way_in: mpsc::Sender<Queued>,
    used: Instant,
    /// Absent while it is being spawned, without the lock.
    task: Option<AbortHandle>,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            queued: Arc::new(Semaphore::new(QUEUED_BYTES)),
        }
    }
}

/// A flow's place in the table, which is free when this is dropped.
struct Slot {
    flows: Arc<Flows>,
    ends: Ends,
    number: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut table = self.flows.table();
        if table.of(self.ends, self.number).is_some() {
            table.flows.remove(&self.ends);
        }
    }
}

impl Table {
    fn of(&mut self, ends: Ends, number: u64) -> Option<&mut Entry> {
        self.flows.get_mut(&ends).filter(|entry| entry.number == number)
    }

    /// Makes room for one more, where there is none, and says whether there is now.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.flows.len() < MAX_FLOWS {
            return true;
        }
        let longest = self.flows.iter().min_by_key(|(_, entry)| entry.used);
        let Some((&ends, _)) = longest.filter(|(_, entry)| now.duration_since(entry.used) >= SPARED) else {
            return false;
        };
        if let Some(task) = self.flows.remove(&ends).and_then(|entry| entry.task) {
            task.abort();
        }
        true
    }
}

impl Flows {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Nothing panics while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a datagram to its flow, or to one that `begin` makes a task of. What there is no room for is lost.
    fn pass(
        self: &Arc<Self>,
        ends: Ends,
        datagram: &[u8],
        begin: impl FnOnce(Slot, mpsc::Receiver<Queued>) -> AbortHandle,
    ) {
        // As long as a datagram at most.
        let length = u32::try_from(datagram.len()).unwrap_or(u32::MAX);
        let Ok(share) = self.queued.clone().try_acquire_many_owned(length) else {
            return;
        };
        let queued = (Bytes::copy_from_slice(datagram), share);
        let now = Instant::now();
        let mut table = self.table();
        // One whose task has just ended is there until the task is dropped.
        if let Some(entry) = table
            .flows
            .get_mut(&ends)
            .filter(|entry| !entry.way_in.is_closed())
        {
            // A full queue loses it, which is no use of the flow: who sends to a guest that takes nothing keeps no place.
            if entry.way_in.try_send(queued).is_ok() {
                entry.used = now;
            }
            return;
        }
        table.flows.remove(&ends);
        if !table.make_room(now) {
            return;
        }
        table.made += 1;
        let number = table.made;
        let (way_in, waiting) = mpsc::channel(QUEUE);
        // The queue is empty.
        let _sent = way_in.try_send(queued);
        let entry = Entry {
            number,
            way_in,
            used: now,
            task: None,
        };
        table.flows.insert(ends, entry);
        drop(table);
        let slot = Slot {
            flows: self.clone(),
            ends,
            number,
        };
        // Without the lock, which the slot's end takes: a runtime that is closing drops a task within its spawn.
        let task = begin(slot, waiting);
        match self.table().of(ends, number) {
            Some(entry) => entry.task = Some(task),
            // It has ended, or has had to make room.
            None => task.abort(),
        }
    }
}

/// Serves until it is dropped.
pub(super) async fn serve(socket: UdpSocket, port: u16, guest: Guest) {
    let Ok(at) = socket.local_addr() else { return };
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            // Both are cancel-safe: a datagram is taken, and an ended flow reaped, only by the arm that wins.
            received = socket.recv_from(&mut buffer) => received,
            Some(_ended) = tasks.join_next() => continue,
        };
        match received {
            Ok((length, from)) => guest.flows.pass((at, from), &buffer[..length], |slot, waiting| {
                let flow = Flow {
                    agent: guest.agent.clone(),
                    socket: socket.clone(),
                    port,
                    slot,
                };
                tasks.spawn(async move {
                    if let Err(error) = flow.carry(waiting).await {
                        tell(port, &error);
                    }
                })
            }),
            // What came of an answer that nobody took is told here (udp(7)), and is no reason to stop.
            Err(error) => {
                tracing::debug!(port, %error, "no datagram taken");
                if error.kind() != std::io::ErrorKind::ConnectionRefused {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// One sender's datagrams.
struct Flow {
    agent: AgentClient,
    socket: Arc<UdpSocket>,
    port: u16,
    slot: Slot,
}

impl Flow {
    async fn carry(&self, mut waiting: mpsc::Receiver<Queued>) -> Result<(), AgentError> {
        let connecting = self.agent.forward(Transport::Udp, None, self.port);
        let (input, mut output) = match tokio::time::timeout(CONNECTING, connecting).await {
            Ok(connected) => connected?,
            Err(after) => {
                tracing::debug!(port = self.port, %after, "no way into the guest for a datagram");
                return Ok(());
            }
        };
        let (_, from) = self.slot.ends;
        let mut idle = Instant::now() + IDLE;
        // Waits for the guest to read, which it may never do: only what it takes keeps the flow.
        let mut next = None;
        loop {
            tokio::select! {
                // All are cancel-safe: what is taken, here or from the guest, is what the arm that wins has.
                queued = waiting.recv(), if next.is_none() => {
                    if queued.is_none() {
                        return Ok(());
                    }
                    next = queued;
                    continue;
                }
                handed = hand_on(&input, next.as_ref()) => {
                    if handed.is_err() {
                        return Ok(());
                    }
                    next = None;
                }
                answer = output.next() => match answer? {
                    Some(answer) => {
                        self.answered();
                        // One that the sender does not take is lost.
                        let _lost = self.socket.send_to(&answer, from).await;
                    }
                    None => return Ok(()),
                },
                // Letting go of the call is the flow's end in the guest too, also for one that does not read.
                () = tokio::time::sleep_until(idle) => return Ok(()),
            }
            idle = Instant::now() + IDLE;
        }
    }

    /// An answer counts as use.
    fn answered(&self) {
        if let Some(entry) = self.slot.flows.table().of(self.slot.ends, self.slot.number) {
            entry.used = Instant::now();
        }
    }
}

/// Hands a datagram to the guest; never, where there is none. Cancel-safe: it is handed on when this returns, or not at all.
async fn hand_on(input: &ForwardInput, next: Option<&Queued>) -> Result<(), ForwardClosed> {
    match next {
        Some((datagram, _share)) => input.datagram(datagram.clone()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc::channel;

    use banger_agent_api::proto::forward_output::Output;
    use banger_agent_api::proto::{ForwardConnected, ForwardOutput};
    use futures_util::FutureExt as _;

    use super::*;
    use crate::older_agent::{Forward, guest_with};

    fn ends(port: u16) -> Ends {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        (at(53), at(port))
    }

    /// Passes a datagram from that port; the flow, where it is a new one. It lasts as long as its task, which is nothing here.
    fn pass(flows: &Arc<Flows>, port: u16) -> Option<(Slot, mpsc::Receiver<Queued>)> {
        let mut begun = None;
        flows.pass(ends(port), b"question", |slot, waiting| {
            begun = Some((slot, waiting));
            tokio::spawn(std::future::pending::<()>()).abort_handle()
        });
        begun
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_flow_makes_room() {
        let flows = Arc::new(Flows::default());
        let mut all: Vec<_> = (1..=96).map(|port| pass(&flows, port).expect("room")).collect();
        // All are in use: who comes now is not served, and nobody is the worse for it.
        assert!(pass(&flows, 97).is_none());
        assert_eq!(flows.table().flows.len(), MAX_FLOWS);
        tokio::time::advance(SPARED).await;
        // Known to be in use again, by a datagram or by an answer.
        assert!(pass(&flows, 1).is_none());
        flows.table().of(ends(2), all[1].0.number).expect("there").used = Instant::now();
        let new = pass(&flows, 97).expect("room");
        assert_eq!(flows.table().flows.len(), MAX_FLOWS);
        assert!(flows.table().flows.contains_key(&ends(1)) && flows.table().flows.contains_key(&ends(2)));
        let gone: Vec<_> = all
            .iter()
            .filter(|(slot, _)| !flows.table().flows.contains_key(&slot.ends))
            .collect();
        assert_eq!(gone.len(), 1);
        // Its queue has ended, its end removes nobody, and the others go on.
        let at = all
            .iter()
            .position(|(slot, _)| flows.table().of(slot.ends, slot.number).is_none())
            .expect("one");
        let (slot, mut waiting) = all.swap_remove(at);
        assert!(waiting.recv().await.is_some() && waiting.recv().await.is_none());
        drop(slot);
        assert_eq!(flows.table().flows.len(), MAX_FLOWS);
        drop(new);
        assert_eq!(flows.table().flows.len(), MAX_FLOWS - 1);
        drop(all);
        assert_eq!(flows.table().flows.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_lost_keeps_no_flow() {
        let flows = Arc::new(Flows::default());
        let _all: Vec<_> = (1..=96).map(|port| pass(&flows, port).expect("room")).collect();
        for _ in 0..QUEUE {
            assert!(pass(&flows, 1).is_none());
        }
        tokio::time::advance(SPARED).await;
        // Of a full queue, and of those with room.
        for port in 1..=96 {
            assert!(pass(&flows, port).is_none());
        }
        let _new = pass(&flows, 97).expect("room");
        assert!(!flows.table().flows.contains_key(&ends(1)));
    }

    /// As when the daemon ends: its spawn drops the task, and the flow's place with it.
    #[test]
    fn a_flow_that_ends_as_it_begins() {
        let (done, end) = channel();
        // Apart, so that a lock that is held fails the test.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let closed = runtime.expect("a runtime").handle().clone();
            let flows = Arc::new(Flows::default());
            flows.pass(ends(1), b"question", |slot, waiting| {
                let task = closed.spawn(async move {
                    let _kept = (slot, waiting);
                    std::future::pending::<()>().await;
                });
                task.abort_handle()
            });
            let left = flows.table().flows.len();
            let _failed_before = done.send((left, flows.queued.available_permits()));
        });
        let left = end.recv_timeout(Duration::from_secs(60)).expect("an end");
        assert_eq!(left, (0, QUEUED_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_read_holds_no_flow_without_end() {
        let never: Forward = |inputs, answers| {
            async move {
                let output = Some(Output::Connected(ForwardConnected {}));
                let _gone = answers.send(Ok(ForwardOutput { output })).await;
                answers.closed().await;
                drop(inputs);
            }
            .boxed()
        };
        let (_directory, agent) = guest_with(Some(never));
        let flows = Arc::new(Flows::default());
        let (slot, waiting) = pass(&flows, 1).expect("room");
        let flow = Flow {
            agent,
            socket: Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket")),
            port: 80,
            slot,
        };
        // It goes on sending.
        let large = vec![0; MAX_DATAGRAM];
        let sending = async {
            loop {
                flows.pass(ends(1), &large, |_, _| unreachable!("there is a flow"));
                tokio::time::sleep(SPARED).await;
            }
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout(10 * IDLE, flow.carry(waiting)) => ended,
            () = sending => unreachable!("it goes on"),
        };
        ended.expect("an end").expect("in order");
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_number_and_bytes() {
        let flows = Arc::new(Flows::default());
        let (slot, mut waiting) = pass(&flows, 1).expect("room");
        for _ in 0..2 * QUEUE {
            assert!(pass(&flows, 1).is_none());
        }
        let mut taken = 0;
        while let Ok((datagram, _share)) = waiting.try_recv() {
            assert_eq!(&datagram[..], b"question");
            taken += 1;
        }
        assert_eq!(taken, QUEUE);
        assert_eq!(flows.queued.available_permits(), QUEUED_BYTES);
        // A flow whose task has ended is replaced.
        drop(waiting);
        let (_again, waiting) = pass(&flows, 1).expect("a new one");
        drop(slot);
        assert!(flows.table().flows.contains_key(&ends(1)));

        let large = vec![0; MAX_DATAGRAM];
        let mut all = Vec::new();
        for port in 2..90 {
            flows.pass(ends(port), &large, |slot, waiting| {
                all.push((slot, waiting));
                tokio::spawn(std::future::pending::<()>()).abort_handle()
            });
        }
        assert_eq!(all.len(), (QUEUED_BYTES - b"question".len()) / MAX_DATAGRAM);
        drop((all, waiting));
        assert_eq!(flows.queued.available_permits(), QUEUED_BYTES);
    }
}
