//! aquifer-qemu
