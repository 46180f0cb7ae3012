//! adapters/sdk
