//! lb-agent
