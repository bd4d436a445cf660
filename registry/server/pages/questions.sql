-- The questions of docs/audit.md, as SQLite spells them. Each begins with its title.

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
    (o.lease_expires_at + s.value - c.now_ms) / 1000 AS seconds_left
FROM owners o, clock c, settings s
WHERE s.name = 'lease_grace_ms' AND o.state IN ('active', 'draining')
    AND o.lease_expires_at < c.now_ms
ORDER BY seconds_left;

-- Who holds something and would do so for ever?
SELECT namespace, component, endpoint, instance_id, lora_slug, registered_at, refs, bytes
FROM owner_footprint
WHERE state = 'active' AND lease_expires_at IS NULL AND refs > 0
ORDER BY registered_at;

-- What was uploaded and is registered by nobody?
SELECT b.checksum, b.size, (c.now_ms - b.uploaded_at) / 1000 AS seconds_ago
FROM blobs b, clock c
WHERE NOT EXISTS (SELECT 1 FROM owner_refs r WHERE r.blob_checksum = b.checksum)
ORDER BY b.uploaded_at;

-- What is the story of a file?
SELECT strftime('%Y-%m-%d %H:%M:%S', at / 1000, 'unixepoch') AS at, kind, instance_id, endpoint,
    lora_slug, reason, substr(previous_checksum, 8, 8) AS before, substr(checksum, 8, 8) AS content
FROM events
WHERE slug = 'llama-3-8b' AND suffix = '_base' AND filename = 'tokenizer.json'
ORDER BY id;

-- What was removed in the last day, and why?
SELECT strftime('%H:%M:%S', v.at / 1000, 'unixepoch') AS at, v.slug, v.suffix, v.filename, v.reason,
    v.instance_id AS last_holder, v.actor, v.request_id
FROM events v, clock c
WHERE v.kind = 'removed' AND v.at > c.now_ms - 86400000
ORDER BY v.id;

-- Who ended in the last day, and how?
SELECT strftime('%H:%M:%S', v.at / 1000, 'unixepoch') AS at, v.kind, v.namespace, v.component,
    v.endpoint, v.instance_id, v.lora_slug, v.reason
FROM events v, clock c
WHERE v.kind IN ('detached', 'expired', 'superseded') AND v.at > c.now_ms - 86400000
ORDER BY v.id;

-- What did this worker leave behind when it went?
SELECT e.slug, e.suffix, e.filename, h.instance_id AS held_by, h.endpoint, h.lora_slug, h.since
FROM events v
JOIN entries e ON e.slug = v.slug AND e.suffix = v.suffix AND e.filename = v.filename
LEFT JOIN holders h ON h.entry_id = e.id
WHERE v.kind = 'released'
    AND v.namespace = 'prod' AND v.component = 'backend' AND v.instance_id = '101'
GROUP BY e.id, h.owner_id
ORDER BY e.slug, e.suffix, e.filename;

-- How does the registry grow from day to day?
SELECT date(at / 1000, 'unixepoch') AS day,
    SUM(kind = 'created') AS created,
    SUM(kind = 'removed') AS removed,
    SUM(SUM((kind = 'created') - (kind = 'removed'))) OVER (ORDER BY date(at / 1000, 'unixepoch'))
        AS entries_since_the_journal_begins
FROM events
GROUP BY day
ORDER BY day;

-- How many workers came back under their name, day by day?
SELECT date(at / 1000, 'unixepoch') AS day, namespace, component, endpoint,
    COUNT(DISTINCT instance_id) AS instances_replaced
FROM events
WHERE kind = 'superseded'
GROUP BY day, namespace, component, endpoint
ORDER BY day, instances_replaced DESC;

-- Which workers end by expiry again and again, instead of detaching?
SELECT namespace, component, endpoint, SUM(kind = 'detached') AS detached,
    SUM(kind = 'expired') AS expired
FROM events
WHERE kind IN ('detached', 'expired')
GROUP BY namespace, component, endpoint
HAVING expired > 0
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
    COUNT(*) AS times, strftime('%Y-%m-%d %H:%M:%S', MAX(at) / 1000, 'unixepoch') AS last
FROM events
WHERE kind = 'refused'
GROUP BY slug, suffix, filename, namespace, component, endpoint, instance_id, reason
ORDER BY last DESC;

-- When did the sweeper last run, and is it held back?
SELECT (c.now_ms - (SELECT value FROM settings WHERE name = 'last_sweep_at')) / 1000 AS swept_s_ago,
    (SELECT (c.now_ms - value) / 1000 FROM settings WHERE name = 'brake_engaged_at') AS brake_since_s,
    (c.now_ms - (SELECT value FROM settings WHERE name = 'expiry_floor_at')) / 1000 AS floor_s_ago
FROM clock c;

-- When did expiry pause, and why did it go on?
SELECT strftime('%Y-%m-%d %H:%M:%S', at / 1000, 'unixepoch') AS at, kind, reason
FROM events
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
