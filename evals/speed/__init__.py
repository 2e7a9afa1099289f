"""`cdkit bench`: what contrastive decoding costs beside plain decoding, in time and in memory."""
