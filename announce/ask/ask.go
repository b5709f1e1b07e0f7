// Package ask is how an announcer learns from the agent of its node what to announce.
package ask

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/localapi"
)

// patience is how long one answer may take.
const patience = 400 * time.Millisecond

// Loop asks an agent. All fields are required.
type Loop struct {
	State  localapi.Table[announce.State]
	Client *localapi.Client
	// Fetch is called with the state when that has changed. When it fails, it is called again.
	Fetch func(context.Context, announce.State) error
	// Each is called after every question, with how long the agent has not answered: 0 when it just did.
	Each func(away time.Duration)
	Log  *slog.Logger
}

// Run asks until ctx is done.
func (l *Loop) Run(ctx context.Context) {
	tick := time.NewTicker(announce.AskEvery)
	defer tick.Stop()
	var have *announce.State
	answered, told := time.Now(), false
	for {
		state, err := l.ask(ctx, have)
		switch {
		case err == nil:
			have, answered = state, time.Now()
			if told {
				l.Log.Info("the agent answers again")
			}
			told = false
		case ctx.Err() != nil:
			return
		case time.Since(answered) > time.Second && !told:
			l.Log.Warn("the agent does not answer", "err", err)
			told = true
		}
		away := time.Duration(0)
		if err != nil {
			away = time.Since(answered)
		}
		l.Each(away)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ask asks once. It fetches what is new.
func (l *Loop) ask(ctx context.Context, have *announce.State) (*announce.State, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	rows, err := l.State.Ask(ctx, l.Client)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("the agent answered with %d states: expected 1", len(rows))
	}
	if err != nil {
		return nil, err
	}
	if have != nil && have.Generation == rows[0].Generation && slices.Equal(have.NodeAddrs, rows[0].NodeAddrs) {
		return have, nil
	}
	if err := l.Fetch(ctx, rows[0]); err != nil {
		return nil, err
	}
	return &rows[0], nil
}
