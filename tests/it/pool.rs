//! Pools of provider keys: whose key pays, which is chosen, and what happens when it fails.
