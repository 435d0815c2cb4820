"""What the database writes by itself: an event for each change and who is to be told of a task's
end, beside the change.

Nobody who changes a task or a machine can forget to tell of it, and what is rolled back was
never told. ``migrations/`` makes these triggers; a test holds the two together.
"""

from __future__ import annotations

TASK_NEW = """
CREATE TRIGGER tasks_new AFTER INSERT ON tasks
BEGIN
    INSERT INTO events (kind, data) VALUES ('task', json_object(
        'id', NEW.id, 'status', NEW.status, 'previous', NULL, 'time', datetime('now')
    ));
END
"""
TASK_CHANGED = """
CREATE TRIGGER tasks_changed AFTER UPDATE OF status ON tasks
WHEN NEW.status IS NOT OLD.status
BEGIN
    INSERT INTO events (kind, data) VALUES ('task', json_object(
        'id', NEW.id, 'status', NEW.status, 'previous', OLD.status, 'time', datetime('now')
    ));
END
"""
TASK_GONE = """
CREATE TRIGGER tasks_gone AFTER DELETE ON tasks
BEGIN
    INSERT INTO events (kind, data) VALUES ('task', json_object(
        'id', OLD.id, 'status', NULL, 'previous', OLD.status, 'time', datetime('now')
    ));
END
"""
MACHINE_CHANGED = """
CREATE TRIGGER machines_changed AFTER UPDATE OF status, locked, task_id, quarantine ON machines
WHEN NEW.status IS NOT OLD.status OR NEW.locked IS NOT OLD.locked
    OR NEW.task_id IS NOT OLD.task_id OR NEW.quarantine IS NOT OLD.quarantine
BEGIN
    INSERT INTO events (kind, data) VALUES ('machine', json_object(
        'id', NEW.id, 'name', NEW.name, 'status', NEW.status, 'previous', OLD.status,
        'locked', json(iif(NEW.locked, 'true', 'false')), 'task_id', NEW.task_id,
        'quarantine', NEW.quarantine, 'time', datetime('now')
    ));
END
"""
NEWEST_KEPT = """
CREATE TRIGGER events_kept AFTER INSERT ON events
BEGIN
    DELETE FROM events WHERE id <= NEW.id - 10000;
END
"""
TASK_ENDED = """
CREATE TRIGGER tasks_ended AFTER UPDATE OF status ON tasks
WHEN NEW.status IS NOT OLD.status AND NEW.status NOT IN ('pending', 'running', 'completed')
BEGIN
    INSERT INTO deliveries (task_id, status, url, due)
    SELECT NEW.id, NEW.status, url, CAST(strftime('%s', 'now') AS INTEGER) FROM
        (SELECT url FROM webhooks UNION SELECT NEW.callback WHERE NEW.callback <> '');
END
"""
TRIGGERS = (TASK_NEW, TASK_CHANGED, TASK_GONE, MACHINE_CHANGED, NEWEST_KEPT, TASK_ENDED)
