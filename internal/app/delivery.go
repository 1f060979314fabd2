package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/config"
	"freshen/internal/delivery"
	"freshen/internal/federation"
	"freshen/internal/homeserver"
)

// ownDelivery is a homeserver that is to announce changes itself.
type ownDelivery struct {
	delivery.Homeserver
	Close func() error
}

// openDelivery reads the secrets that are needed for having the homeserver announce changes itself; nil where the
// configuration does not want that.
func openDelivery(cfg config.Homeserver, key *federation.SigningKey, log *slog.Logger, now func() time.Time) (*ownDelivery, error) {
	switch {
	case cfg.Synapse.Replication != nil:
		return openSynapse(cfg.Synapse, log, now)
	case cfg.Dendrite.AdminTokenFile != "":
		return openDendrite(cfg, key, log)
	}
	return nil, nil
}

func openSynapse(cfg config.Synapse, log *slog.Logger, now func() time.Time) (*ownDelivery, error) {
	var secret []byte
	if cfg.SecretFile != "" {
		var err error
		if secret, err = os.ReadFile(cfg.SecretFile); err != nil {
			return nil, fmt.Errorf("homeserver.synapse.replication_secret_file: %w", err)
		}
	}
	synapse, err := homeserver.NewSynapse(homeserver.SynapseConfig{
		Database: cfg.Database.URL, Replication: cfg.Replication, Secret: strings.TrimSpace(string(secret)), Log: log, Now: now,
	})
	if err != nil {
		return nil, err
	}
	return &ownDelivery{synapse, synapse.Close}, nil
}

func openDendrite(cfg config.Homeserver, key *federation.SigningKey, log *slog.Logger) (*ownDelivery, error) {
	transport := homeserver.NewTransport()
	own := federation.NewOwn(cfg.URL, cfg.Name, key, transport)
	dendrite, err := homeserver.NewDendrite(homeserver.DendriteConfig{
		URL: cfg.URL, TokenFile: cfg.Dendrite.AdminTokenFile, Transport: transport, Log: log,
		Stored: func(ctx context.Context, target id.UserID) (*freshen.DeviceList, error) {
			list, answered, err := own.Stored(ctx, target)
			if err != nil && !answered {
				err = &homeserver.DownError{Asked: "a device list", Err: homeserver.WithoutURL(err)}
			}
			return list, err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("homeserver.dendrite.admin_token_file: %w", err)
	}
	return &ownDelivery{dendrite, dendrite.Close}, nil
}
