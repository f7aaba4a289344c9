//! A large cluster, placed by the real brain and held by the real state.
