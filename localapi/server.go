package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"tapestry.dev/tapestry/fdpass"
)

const (
	// answerTime bounds the time that the agent takes for an answer: each of its checks takes a second.
	answerTime = 30 * time.Second
	// pageSize is how many bytes of rows go in one message; it leaves room for the rest of the message.
	pageSize = fdpass.MaxMessage - 1024
)

// Options says which users may ask, and where refused ones are logged.
type Options = fdpass.Options

// Listen makes the socket at path, and replaces that of an agent that died. Only this user may connect, and the users
// that Options names: Serve asks the kernel who they are.
func Listen(path string, o Options) (*net.UnixListener, error) {
	mode := fs.FileMode(0o600)
	for _, uid := range o.UIDs {
		if uid != 0 && int(uid) != os.Geteuid() { // root needs no permission
			mode = 0o666
		}
	}
	return fdpass.Listen(path, mode)
}

// Server answers on the socket. Node and Tables are required.
type Server struct {
	// Node returns the state of the node; it may take seconds.
	Node func(context.Context) Node
	// Tables lists the tables that clients can ask for.
	Tables []Source
	// Flows reads what a query is for; nil for an agent that records no flows.
	Flows func(FlowQuery) FlowReader
	// Told are the tables that clients tell.
	Told    []Sink
	Options Options
}

// Serve answers clients on l, which Listen made, until ctx is done, and closes l.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	o := s.Options
	o.NoFiles = true // no message here carries any
	return fdpass.Serve(ctx, l, o, s.serve)
}

func (s *Server) serve(ctx context.Context, c *fdpass.Conn) {
	var rest []json.RawMessage // rows of the table asked for last that were not sent yet
	var so told
	var events FlowReader // of the query asked last
	for {
		var r request
		_, err := c.Receive(&r)
		if err != nil {
			if errors.Is(err, fdpass.ErrBad) {
				_ = c.Answer(answer{Error: err.Error()})
			}
			return
		}
		if r.Op == opTell {
			if c.Answer(s.tell(c.Peer().UID, &r, &so)) != nil {
				return
			}
			continue
		}
		if r.Op == opFlows {
			if r.Flows != nil && s.Flows != nil {
				events = s.Flows(*r.Flows)
			}
			if c.Answer(s.flows(ctx, events)) != nil {
				return
			}
			continue
		}
		a, left := s.answer(ctx, c.Peer().UID, &r, rest)
		rest = left
		if c.Answer(a) != nil {
			return
		}
	}
}

// flows answers a request for events that are read so.
func (s *Server) flows(ctx context.Context, events FlowReader) answer {
	switch {
	case s.Flows == nil:
		return answer{Error: "this agent records no flows: start it with --flow-log"}
	case events == nil:
		return answer{Error: "the first request for flows has no query"}
	}
	a, err := flows(ctx, events)
	if err != nil {
		return answer{Error: err.Error()}
	}
	return a
}

// answer returns the answer to r, which a user asks, and the rows of a table that are left after it.
func (s *Server) answer(ctx context.Context, uid uint32, r *request, rest []json.RawMessage) (answer, []json.RawMessage) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	switch r.Op {
	case opNode:
		n := s.Node(ctx)
		return answer{Node: &n}, nil
	case opMore:
		return page(rest)
	case opRows:
		var names []string
		for _, t := range s.Tables {
			names = append(names, t.name)
			if t.name != r.Table {
				continue
			}
			var rows []json.RawMessage
			err := t.users.refuse(uid, t.name)
			if err == nil {
				rows, err = t.rows(ctx, r.Args)
			}
			if err != nil {
				return answer{Error: err.Error()}, nil
			}
			return page(rows)
		}
		return answer{Error: fmt.Sprintf("there is no table %q: expected one of %s", r.Table, strings.Join(names, ", "))}, nil
	}
	return answer{Error: fmt.Sprintf("unknown request %q", r.Op)}, nil
}

// page returns an answer with as many rows as fit a message, at least one, and the rows that are left.
func page(rows []json.RawMessage) (answer, []json.RawMessage) {
	size, n := 0, 0
	for ; n < len(rows); n++ {
		if size += len(rows[n]) + len(","); size > pageSize {
			break
		}
	}
	if n == 0 && len(rows) > 0 {
		return answer{Error: fmt.Sprintf("a row of %d bytes does not fit a message of %d", len(rows[0]), pageSize)}, nil
	}
	return answer{Rows: rows[:n], More: n < len(rows)}, rows[n:]
}
