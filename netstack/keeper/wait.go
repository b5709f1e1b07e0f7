package keeper

import (
	"context"
	"fmt"

	"tapestry.dev/tapestry/fdpass"
)

// Wait connects to the keeper at path, calls connected, and returns when that keeper has ended or ctx ends. It returns
// an error when there is no keeper, or the error of connected.
func Wait(ctx context.Context, path string, connected func() error) error {
	c, err := fdpass.Dial(ctx, path)
	if err != nil {
		return fmt.Errorf("connect to the keeper: %w", err)
	}
	defer c.Close()
	if err := connected(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	// A keeper sends only answers, so this waits for the end of the connection.
	var nothing struct{}
	if fds, err := c.Receive(&nothing); err == nil {
		fdpass.CloseAll(fds)
	}
	return nil
}
