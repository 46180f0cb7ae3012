//! gateway/audit
