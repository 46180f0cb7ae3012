//! Work that outlives its request: a client that goes away must not cancel a commit half way. Every task is counted until it
//! ends, and the gateway's stop waits for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::problem::Refusal;

/// The tasks of all requests. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    open: Arc<Open>,
}

#[derive(Debug, Default)]
struct Open {
    count: AtomicUsize,
    ended: Notify,
}

/// One open task.
struct Place(Arc<Open>);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

impl Tasks {
    /// Starts `work` on a task of its own. It runs to its end whatever becomes of its starter.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.open.count.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(&self.open));
        tokio::spawn(async move {
            let _place = place;
            work.await
        })
    }

    /// Runs `work` on a task of its own and waits for it; dropping the wait does not stop the work.
    pub(crate) async fn run<T, E>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, Refusal>
    where
        T: Send + 'static,
        E: Into<Refusal> + Send + 'static,
    {
        match self.start(work).await {
            Ok(result) => result.map_err(Into::into),
            Err(failure) => Err(Refusal::internal(failure)),
        }
    }

    /// Waits until no task is open. Call it after the listeners have stopped: nothing new starts then.
    pub(crate) async fn drained(&self) {
        loop {
            let ended = self.open.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.open.count.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::http::tests::pends;

    #[tokio::test]
    async fn work_goes_on_when_its_request_is_dropped_and_the_stop_waits_for_it() {
        let tasks = Tasks::default();
        let (go, gone) = oneshot::channel::<()>();
        let (done, mut finished) = oneshot::channel::<()>();
        let mut request = Box::pin(tasks.run::<(), Refusal>(async move {
            let _ = gone.await;
            let _ = done.send(());
            Ok(())
        }));
        assert!(pends(request.as_mut()).await);
        drop(request);
        let mut drained = Box::pin(tasks.drained());
        assert!(pends(drained.as_mut()).await);
        go.send(()).unwrap();
        drained.await;
        assert_eq!(finished.try_recv(), Ok(()));
    }

    #[tokio::test]
    async fn a_panic_is_a_refusal_and_leaves_no_task_behind() {
        let tasks = Tasks::default();
        let refused = tasks.run::<(), Refusal>(async { panic!("boom") }).await.unwrap_err();
        assert_eq!(refused.code, gatepost_api::problem::Code::Internal);
        tasks.drained().await;
    }
}
