"""DynamiCrafter (Xing et al., 2310.12190): a picture and a prompt become a clip of sixteen frames."""
