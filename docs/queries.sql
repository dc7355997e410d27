-- ## Emotion share by day and folder
-- Percent of the faces of a folder that were labeled on a day. `100e0` is a floating-point number in DuckDB and in Athena.
SELECT run_date, folder, emotion, count(*) AS faces,
    round(100e0 * count(*) / sum(count(*)) OVER (PARTITION BY run_date, folder), 1) AS percent
FROM (SELECT run_date, regexp_extract(image_uri, '(?s)^(.*)/', 1) AS folder, emotion FROM faces_latest) AS faces_in_folders
GROUP BY run_date, folder, emotion
ORDER BY run_date, folder, faces DESC, emotion;

-- ## Faces of low confidence
-- The faces that a person should look at first. The box says where each is, in pixels of the upright image.
SELECT image_uri, face_index, bbox_x, bbox_y, bbox_width, bbox_height, emotion, confidence, detection_score, sharpness
FROM faces_latest
WHERE confidence < 0.5
ORDER BY confidence, image_uri, face_index
LIMIT 100;

-- ## Error rate
-- Percent of the images of each run that could not be labeled, how many for which reason, and one of the reasons in words.
SELECT run_date, run_id, count(*) AS images,
    round(100e0 * count(*) FILTER (WHERE status NOT IN ('ok', 'no_face', 'archived')) / count(*), 2) AS percent_failed,
    count(*) FILTER (WHERE status = 'unreadable') AS unreadable,
    count(*) FILTER (WHERE status = 'undecodable') AS undecodable,
    count(*) FILTER (WHERE status = 'too_large') AS too_large,
    min(error) AS one_error
FROM images
GROUP BY run_date, run_id
ORDER BY run_date, run_id;

-- ## Duplicates by content
-- The same bytes under several names, and what keeping one of them would save.
SELECT content_sha256, count(*) AS copies, sum(size_bytes) - max(size_bytes) AS bytes_to_save,
    array_agg(image_uri ORDER BY image_uri) AS image_uris
FROM images_latest
WHERE content_sha256 IS NOT NULL
GROUP BY content_sha256
HAVING count(*) > 1
ORDER BY bytes_to_save DESC, content_sha256;

-- ## Agreement of two models
-- How often two models give the same face the same emotion, for every pair of models. A face is the same when the bytes of the
-- image and the box are, so both must have labeled with the same detector settings; pictures that lie there twice count once.
WITH labeled AS (
    SELECT DISTINCT images.content_sha256, faces.bbox_x, faces.bbox_y, faces.bbox_width, faces.bbox_height,
        faces.model_version, faces.emotion
    FROM faces JOIN images ON faces.image_id = images.image_id AND faces.run_id = images.run_id
    WHERE faces.emotion <> 'unknown'
)
SELECT one.model_version AS one_model, other.model_version AS other_model, count(*) AS faces,
    round(100e0 * count(*) FILTER (WHERE one.emotion = other.emotion) / count(*), 1) AS percent_agreed
FROM labeled AS one JOIN labeled AS other
    ON one.content_sha256 = other.content_sha256 AND one.model_version < other.model_version
    AND one.bbox_x = other.bbox_x AND one.bbox_y = other.bbox_y
    AND one.bbox_width = other.bbox_width AND one.bbox_height = other.bbox_height
GROUP BY one.model_version, other.model_version
ORDER BY one_model, other_model;

-- ## State of the archive
-- Which model labeled how many images, and what came of it: shows what a new model has not reached yet.
SELECT model_name, model_version, detector_version, status, count(*) AS images, sum(face_count) AS faces,
    min(labeled_at) AS first_labeled_at, max(labeled_at) AS last_labeled_at
FROM images_by_model
GROUP BY model_name, model_version, detector_version, status
ORDER BY last_labeled_at DESC, status;

-- ## Minutes of happy faces per film
-- And of all faces, as long as they are shown. The rate of the frames does not matter.
SELECT video_uri, count(*) AS tracks, round(sum(seconds * share_happy) / 60, 2) AS happy_minutes, round(sum(seconds) / 60, 2) AS minutes
FROM tracks_latest
GROUP BY video_uri
ORDER BY happy_minutes DESC, video_uri;

-- ## Seconds of the longest surprise
-- The longest time that one face of a film looks surprised without a break, and where it begins: the first film to look at.
WITH numbered AS (
    SELECT video_uri, run_id, track_id, frame_time_ms, emotion,
        lead(frame_time_ms, 1, frame_time_ms) OVER (PARTITION BY video_uri, run_id, track_id ORDER BY frame_time_ms) AS until_ms,
        row_number() OVER (PARTITION BY video_uri, run_id, track_id ORDER BY frame_time_ms)
            - row_number() OVER (PARTITION BY video_uri, run_id, track_id, emotion ORDER BY frame_time_ms) AS stretch
    FROM faces_latest
    WHERE track_id IS NOT NULL
)
SELECT video_uri, track_id, min(frame_time_ms) / 1000e0 AS begins_at, (max(until_ms) - min(frame_time_ms)) / 1000e0 AS seconds
FROM numbered
WHERE emotion = 'surprise'
GROUP BY video_uri, run_id, track_id, stretch
ORDER BY seconds DESC, video_uri, begins_at
LIMIT 20;

-- ## Happy faces by month and folder
-- By the month in which the pictures were taken, of those that are there: percent of the faces that are called happy, and the
-- mean of their probabilities, which is less wrong for a share than counting labels.
SELECT CAST(date_trunc('month', images.taken_at) AS date) AS month, images.folder, count(*) AS faces,
    round(100e0 * count(*) FILTER (WHERE faces.emotion = 'happy') / count(*), 1) AS percent_happy,
    round(100e0 * avg(CAST(faces.prob_happy AS double)), 1) AS percent_expected
FROM images_present AS images JOIN faces_present AS faces ON faces.image_id = images.image_id
WHERE images.taken_at IS NOT NULL
GROUP BY CAST(date_trunc('month', images.taken_at) AS date), images.folder
ORDER BY month, images.folder;

-- ## One picture at two addresses
-- What lies at another address with the same path below its input and the same bytes, as after a mount has moved: joins what
-- you know by an old address with the labels at the new one.
SELECT older.relative_path, older.image_uri AS older_uri, newer.image_uri AS newer_uri
FROM images_latest AS older JOIN images_latest AS newer
    ON older.relative_path = newer.relative_path AND older.content_sha256 = newer.content_sha256
WHERE older.image_uri <> newer.image_uri AND older.labeled_at < newer.labeled_at
ORDER BY older.relative_path, older.image_uri, newer.image_uri;

-- ## No committed run for 26 hours
-- One row when the last night is overdue, none while all is well: what a scheduler asks each hour, and alarms where an answer comes.
SELECT max(run_date) AS last_run_date, max(finished_at) AS last_committed_at
FROM runs
HAVING coalesce(max(finished_at) < now() - INTERVAL '26' HOUR, true);
