package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/fdpass"
)

// Client asks the agent whose socket is at Path. Every call makes its own connection, so that a Client outlives
// restarts of the agent.
type Client struct {
	Path string
}

// Node asks how the node is.
func (c *Client) Node(ctx context.Context) (Node, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return Node{}, err
	}
	defer conn.Close()
	a, err := exchange(ctx, conn, request{Op: opNode})
	if err == nil && a.Node == nil {
		err = errors.New("the agent answered without its node")
	}
	if err != nil {
		return Node{}, err
	}
	return *a.Node, nil
}

// Counters asks for everything that is counted.
func (c *Client) Counters(ctx context.Context) (counter.List, error) { return Counters.Ask(ctx, c) }

func (c *Client) rows(ctx context.Context, table string, args []string) ([]json.RawMessage, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var rows []json.RawMessage
	for r := (request{Op: opRows, Table: table, Args: args}); ; r = (request{Op: opMore}) {
		a, err := exchange(ctx, conn, r)
		if err != nil {
			return nil, err
		}
		rows = append(rows, a.Rows...)
		if !a.More {
			return rows, nil
		}
	}
}

func (c *Client) dial(ctx context.Context) (*fdpass.Conn, error) {
	conn, err := fdpass.Dial(ctx, c.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return conn, nil
}

func exchange(ctx context.Context, conn *fdpass.Conn, r request) (answer, error) {
	var a answer
	got, err := conn.Call(ctx, r, &a)
	fdpass.CloseAll(got)
	switch {
	case err != nil && ctx.Err() == nil: // the agent went away during the request
		return answer{}, fmt.Errorf("%w: %s: %w", ErrUnavailable, r.Op, err)
	case err != nil:
		return answer{}, fmt.Errorf("ask the agent for its %s: %w", r.Op, err)
	case a.Error != "":
		return answer{}, errors.New(a.Error)
	}
	return a, nil
}
