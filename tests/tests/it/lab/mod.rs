//! The fault laboratory: what must never be lost, doubled or reordered, whatever dies where.

mod points;
