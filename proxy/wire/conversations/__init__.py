"""Request and response objects of the Conversations API."""
