package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// mostTold is how many rows a client may tell at most, and mostToldBytes how many bytes.
const (
	mostTold      = 20_000
	mostToldBytes = 8 << 20
)

// Sink is where a Server leaves the rows of a table that a client tells.
type Sink struct {
	name  string
	take  func([]json.RawMessage) error
	users users
}

// For returns s for some users alone, as Source.For does.
func (s Sink) For(uids ...uint32) Sink { s.users = uids; return s }

// To returns the Sink of a table whose rows the func take is given, all of them each time. Several goroutines may call
// take at once.
func (t Table[T]) To(take func([]T)) Sink {
	return Sink{name: t.Name, take: func(raw []json.RawMessage) error {
		rows := make([]T, len(raw))
		for i := range raw {
			if err := json.Unmarshal(raw[i], &rows[i]); err != nil {
				return fmt.Errorf("table %s: row %d is not a row of this table: %w", t.Name, i, err)
			}
		}
		take(rows)
		return nil
	}}
}

// Tell gives the agent the rows of a table, in place of those that it was told before.
func (t Table[T]) Tell(ctx context.Context, c *Client, rows []T) error {
	raw := make([]json.RawMessage, len(rows))
	for i := range rows {
		var err error
		if raw[i], err = json.Marshal(&rows[i]); err != nil {
			return fmt.Errorf("table %s, row %d: %w", t.Name, i, err)
		}
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		a, rest := page(raw)
		if a.Error != "" {
			return errors.New(a.Error)
		}
		if _, err := exchange(ctx, conn, request{Op: opTell, Table: t.Name, Rows: a.Rows, More: a.More}); err != nil || !a.More {
			return err
		}
		raw = rest
	}
}

// told is what a client has told so far of a table.
type told struct {
	table string
	rows  []json.RawMessage
	bytes int
}

// tell takes the next rows of a table from a user.
func (s *Server) tell(uid uint32, r *request, so *told) answer {
	if so.table != r.Table {
		*so = told{table: r.Table}
	}
	for _, row := range r.Rows {
		so.bytes += len(row)
	}
	if so.rows = append(so.rows, r.Rows...); len(so.rows) > mostTold || so.bytes > mostToldBytes {
		*so = told{}
		return answer{Error: fmt.Sprintf("table %q is too long: expected at most %d rows and %d bytes", r.Table, mostTold, mostToldBytes)}
	}
	if r.More {
		return answer{}
	}
	rows := so.rows
	*so = told{}
	for _, sink := range s.Told {
		if sink.name == r.Table {
			err := sink.users.refuse(uid, r.Table)
			if err == nil {
				err = sink.take(rows)
			}
			if err != nil {
				return answer{Error: err.Error()}
			}
			return answer{}
		}
	}
	return answer{Error: fmt.Sprintf("nobody may tell the table %q", r.Table)}
}
