"""Pages of an atlas: one of all patients, one per case, with charts and voxels."""
