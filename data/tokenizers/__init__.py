"""Text to ids: trained here, or of others."""
