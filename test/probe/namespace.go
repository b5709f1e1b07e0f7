package probe

import (
	"context"
	"fmt"
	"os"

	"tapestry.dev/tapestry/netstack/keeper"
)

// GiveNamespace gives this process's network namespace to a keeper, so that a process elsewhere can enter it.
func GiveNamespace(ctx context.Context, path, key string) error {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := keeper.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Put(key, nil, ns); err != nil {
		return fmt.Errorf("give the namespace: %w", err)
	}
	return nil
}
