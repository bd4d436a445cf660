-- The questions of docs/audit.md, for SQLite and PostgreSQL alike. Each begins with its title.

-- Who holds a file, since when, and where are the bytes?
SELECT instance_id, endpoint, lora_slug, state, source, path, status, since
FROM holders
WHERE slug = 'llama-3-8b' AND suffix = '_base' AND filename = 'tokenizer.json'
ORDER BY since;

-- Which model holds the most bytes?
SELECT slug, suffix, COUNT(*) AS files, SUM(size) AS bytes
FROM entries
GROUP BY slug, suffix
ORDER BY bytes DESC
LIMIT 10;

-- Which owner holds the most?
SELECT namespace, component, endpoint, instance_id, lora_slug, state, refs, bytes
FROM owner_footprint
ORDER BY bytes DESC
LIMIT 10;

-- How much is shared?
SELECT COUNT(DISTINCT entry_id) AS entries,
    COUNT(*) AS refs,
    (SELECT SUM(size) FROM entries) AS bytes_once,
    SUM(size) AS bytes_if_not_shared
FROM holders;

-- Whose lease has lapsed, and how many seconds until they are ended?
SELECT o.namespace, o.component, o.endpoint, o.instance_id, o.lora_slug,
    (o.lease_expires_at + CAST(s.value AS BIGINT) - c.now_ms) / 1000 AS seconds_left
FROM owners o, clock c, settings s
WHERE s.name = 'lease_grace_ms' AND o.state IN ('active', 'draining')
    AND o.lease_expires_at < c.now_ms
ORDER BY seconds_left;

-- Who holds something and would do so for ever?
SELECT namespace, component, endpoint, instance_id, lora_slug, registered_at, refs, bytes
FROM owner_footprint
WHERE state = 'active' AND lease_expires_at IS NULL AND refs > 0
ORDER BY registered_at;

-- Which models have a single holder?
SELECT slug, suffix, only_holder, COUNT(*) AS files
FROM (
    SELECT slug, suffix, entry_id, MIN(namespace || '/' || component || '/' || endpoint
        || '/' || instance_id) AS only_holder
    FROM holders
    GROUP BY slug, suffix, entry_id
    HAVING COUNT(*) = 1) alone
GROUP BY slug, suffix, only_holder
ORDER BY slug, suffix, only_holder;

-- Who holds something and was not heard of for an hour?
SELECT f.namespace, f.component, f.endpoint, f.instance_id, f.lora_slug, f.state, f.renewed_at,
    f.refs, f.bytes
FROM owners o
JOIN owner_footprint f ON f.owner_id = o.id
CROSS JOIN clock c
WHERE f.state IN ('active', 'draining') AND f.refs > 0 AND o.renewed_at < c.now_ms - 3600000
ORDER BY o.renewed_at;

-- Which files does a LoRA share with its base model?
SELECT l.slug, l.suffix, l.filename, b.filename AS in_base, l.size
FROM entries l
JOIN entries b ON b.slug = l.slug AND b.suffix = '_base' AND b.checksum = l.checksum
WHERE l.suffix <> '_base'
ORDER BY l.slug, l.suffix, l.filename;

-- What was uploaded and is registered by nobody, and who uploaded it?
SELECT b.checksum, b.size, (c.now_ms - b.uploaded_at) / 1000 AS seconds_ago, v.actor, v.request_id
FROM clock c
CROSS JOIN blobs b
LEFT JOIN events v ON v.id = (
    SELECT MAX(u.id) FROM events u WHERE u.kind = 'uploaded' AND u.checksum = b.checksum)
WHERE NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.blob_checksum = b.checksum)
ORDER BY b.uploaded_at;

-- What is the story of a file?
SELECT at, kind, instance_id, endpoint, lora_slug, reason, size,
    substr(previous_checksum, 8, 8) AS before, substr(checksum, 8, 8) AS content
FROM journal
WHERE entry_id IN (
    SELECT id FROM entries
    WHERE slug = 'llama-3-8b' AND suffix = '_base' AND filename = 'tokenizer.json'
    UNION ALL
    SELECT entry_id FROM events
    WHERE kind = 'removed'
        AND slug = 'llama-3-8b' AND suffix = '_base' AND filename = 'tokenizer.json')
ORDER BY at_ms, id;

-- What was removed in the last day, and why?
SELECT v.at, v.slug, v.suffix, v.filename, v.size, v.reason, v.instance_id AS last_holder, v.actor,
    v.request_id
FROM journal v, clock c
WHERE v.kind = 'removed' AND v.at_ms > c.now_ms - 86400000
ORDER BY v.id;

-- Who ended in the last day, and how?
SELECT v.at, v.kind, v.namespace, v.component, v.endpoint, v.instance_id, v.lora_slug, v.reason
FROM journal v, clock c
WHERE v.kind IN ('detached', 'expired', 'superseded') AND v.at_ms > c.now_ms - 86400000
ORDER BY v.id;

-- What did this worker leave behind when it went?
SELECT DISTINCT e.slug, e.suffix, e.filename, h.instance_id AS held_by, h.endpoint, h.lora_slug,
    h.since
FROM events v
JOIN entries e ON e.slug = v.slug AND e.suffix = v.suffix AND e.filename = v.filename
LEFT JOIN holders h ON h.entry_id = e.id
WHERE v.kind = 'released'
    AND v.namespace = 'prod' AND v.component = 'backend' AND v.instance_id = '101'
ORDER BY e.slug, e.suffix, e.filename;

-- How does the registry grow from day to day, in files and in bytes?
SELECT substr(j.at, 1, 10) AS day, d.created, d.removed, d.bytes, d.uploaded,
    SUM(d.created - d.removed) OVER (ORDER BY d.first_id) AS entries_since_the_journal_begins,
    SUM(d.bytes) OVER (ORDER BY d.first_id) AS bytes_since_the_journal_begins
FROM (
    SELECT MIN(id) AS first_id,
        COUNT(*) FILTER (WHERE kind = 'created') AS created,
        COUNT(*) FILTER (WHERE kind = 'removed') AS removed,
        COALESCE(SUM(growth), 0) AS bytes,
        COALESCE(SUM(size) FILTER (WHERE kind = 'uploaded' AND reason IS NULL), 0) AS uploaded
    FROM journal
    WHERE kind IN ('created', 'removed', 'replaced', 'uploaded')
    GROUP BY at_ms / 86400000) d
JOIN journal j ON j.id = d.first_id
ORDER BY d.first_id;

-- How many workers came back under their name, day by day?
SELECT substr(at, 1, 10) AS day, namespace, component, endpoint,
    COUNT(DISTINCT instance_id) AS instances_replaced
FROM journal
WHERE kind = 'superseded'
GROUP BY day, namespace, component, endpoint
ORDER BY day, instances_replaced DESC;

-- Which workers end by expiry again and again, instead of detaching?
SELECT namespace, component, endpoint, COUNT(*) FILTER (WHERE kind = 'detached') AS detached,
    COUNT(*) FILTER (WHERE kind = 'expired') AS expired
FROM events
WHERE kind IN ('detached', 'expired')
GROUP BY namespace, component, endpoint
HAVING COUNT(*) FILTER (WHERE kind = 'expired') > 0
ORDER BY expired DESC;

-- What did one request do?
SELECT id, kind, slug, suffix, filename, reason, actor
FROM events
WHERE request_id = 'deploy-4711'
ORDER BY id;

-- Who leaked?
SELECT severity, class, owner, entry, since, detail
FROM leaks
WHERE severity <> 'note'
ORDER BY CASE severity WHEN 'corruption' THEN 0 WHEN 'outage' THEN 1 WHEN 'fault' THEN 2 ELSE 3 END, since;

-- How many findings of each class are there?
SELECT class, severity, COUNT(*) AS findings, MIN(since) AS oldest
FROM leaks
GROUP BY class, severity
ORDER BY findings DESC;

-- Which files in place are broken, and whose are they?
SELECT slug, suffix, filename, status, path, namespace, component, endpoint, instance_id
FROM holders
WHERE status <> 'ok'
ORDER BY slug, suffix, filename;

-- Who fights over which key?
SELECT slug, suffix, filename, namespace, component, endpoint, instance_id, reason,
    COUNT(*) AS times, MAX(at) AS last
FROM journal
WHERE kind = 'refused'
GROUP BY slug, suffix, filename, namespace, component, endpoint, instance_id, reason
ORDER BY last DESC;

-- When did the sweeper last run, and is it held back?
SELECT s.name, (c.now_ms - CAST(s.value AS BIGINT)) / 1000 AS seconds_ago
FROM settings s, clock c
WHERE s.name IN ('last_sweep_at', 'brake_engaged_at', 'expiry_floor_at')
ORDER BY s.name;

-- When did expiry pause, and why did it go on?
SELECT at, kind, reason
FROM journal
WHERE kind IN ('expiry_paused', 'expiry_resumed')
ORDER BY id;

-- Do the journal and the tables agree?
WITH last AS (
    SELECT namespace, component, endpoint, instance_id, lora_slug, slug, suffix, filename, kind,
        row_number() OVER (
            PARTITION BY namespace, component, endpoint, instance_id, lora_slug, slug, suffix, filename
            ORDER BY id DESC) AS newest
    FROM events
    WHERE kind IN ('registered', 'replaced', 'released')
)
SELECT l.*
FROM last l
LEFT JOIN holders h USING (namespace, component, endpoint, instance_id, lora_slug, slug, suffix, filename)
WHERE l.newest = 1 AND (l.kind = 'released') = (h.owner_id IS NOT NULL);
