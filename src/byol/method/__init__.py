"""The BYOL method: networks, views, optimizers and schedules."""
