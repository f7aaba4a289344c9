//! Volumes (moby `api/types/volume`).

use super::{Map, Time, object};

object! {
    Volume {
        created_at: Time = "CreatedAt";
        driver: String = "Driver";
        labels: Map = "Labels";
        mountpoint: String = "Mountpoint";
        name: String = "Name";
        options: Option<Map> = "Options";
        scope: String = "Scope";
        /// Only for `GET /system/df`.
        usage: Option<VolumeUsage> = "UsageData" omitempty;
    }

    VolumeUsage {
        ref_count: i64 = "RefCount";
        size: i64 = "Size";
    }

    VolumeCreate {
        name: String = "Name" omitempty;
        driver: String = "Driver" omitempty;
        options: Map = "DriverOpts" omitempty;
        labels: Map = "Labels" omitempty;
        cluster: Option<serde_json::Value> = "ClusterVolumeSpec" omitempty;
    }

    VolumeList {
        volumes: Vec<Volume> = "Volumes";
        warnings: Option<Vec<String>> = "Warnings";
    }

    VolumesPruned {
        deleted: Option<Vec<String>> = "VolumesDeleted";
        reclaimed: u64 = "SpaceReclaimed";
    }
}
