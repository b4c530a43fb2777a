"""Which codes stand for an image at each scale, and how codes move while they are learnt."""
