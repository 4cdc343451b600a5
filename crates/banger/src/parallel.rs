//! The same call for many things at once, a bounded number at a time.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::CliError;

/// How many calls are in flight at once; each takes a connection to the daemon.
const PARALLEL: usize = 16;

/// Results in the order of what was asked for.
pub(crate) async fn ordered<T, R, F>(
    items: impl IntoIterator<Item = T>,
    call: impl Fn(T) -> F,
) -> Result<Vec<R>, CliError>
where
    F: Future<Output = R> + Send + 'static,
    R: Send + 'static,
{
    let places = Arc::new(Semaphore::new(PARALLEL));
    let mut tasks = JoinSet::new();
    let mut results: Vec<Option<R>> = Vec::new();
    for (index, item) in items.into_iter().enumerate() {
        let (work, places) = (call(item), places.clone());
        results.push(None);
        tasks.spawn(async move {
            // The semaphore is never closed; a place is held until the end.
            let _place = places.acquire().await;
            (index, work.await)
        });
    }
    while let Some(ended) = tasks.join_next().await {
        // A panic of ours: there is nothing better to say than what it was.
        let (index, result) = ended.map_err(|error| CliError::general(error.to_string()))?;
        if let Some(place) = results.get_mut(index) {
            *place = Some(result);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn in_order_and_never_too_many() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let results = ordered(0..100_usize, |item| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Later ones are ready first.
                for _ in item..100 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                item
            }
        });
        assert_eq!(results.await.unwrap(), (0..100).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), PARALLEL);
    }
}
