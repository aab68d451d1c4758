"""The router: one OpenAI-compatible endpoint that starts engines on demand. Import-light."""
