//! lb-ebpf
