//! userfaultfd(2).
