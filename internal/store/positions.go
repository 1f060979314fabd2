package store

import (
	"context"
	"database/sql"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// DevicePositions is [Store.DevicePosition] of several devices, none of them twice, in their order.
func (s *Store) DevicePositions(ctx context.Context, devices []freshen.Requester) (all []DevicePosition, err error) {
	if s.Shared() {
		return s.sharedPositions(ctx, devices)
	}
	all = make([]DevicePosition, len(devices))
	for i, who := range devices {
		if all[i], err = s.DevicePosition(ctx, who.UserID, who.DeviceID); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// askedFor joins the devices whose users are $1 and whose names are $2.
const askedFor = ` JOIN unnest($1::text[], $2::text[]) AS asked (u, d) ON user_id = u AND device_id = d`

// sharedPositions asks two questions, however many devices there are.
func (s *Store) sharedPositions(ctx context.Context, devices []freshen.Requester) ([]DevicePosition, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	all := make([]DevicePosition, len(devices))
	at := make(map[freshen.Requester]*DevicePosition, len(devices))
	var users, names []string
	for i, who := range devices {
		all[i] = DevicePosition{UserID: who.UserID, DeviceID: who.DeviceID, Above: map[id.UserID]int64{}}
		if storable(who.DeviceID) {
			at[who] = &all[i]
			users, names = append(users, string(who.UserID)), append(names, string(who.DeviceID))
		}
	}
	// In this order: what stands above the floor may be below it a moment later. Read the other way round, it might be
	// found in neither.
	_, err := queryAll(ctx, s.read, func(rows *sql.Rows) (struct{}, error) {
		var who freshen.Requester
		var target id.UserID
		var acked int64
		err := rows.Scan(&who.UserID, &who.DeviceID, &target, &acked)
		if p := at[who]; p != nil {
			p.Above[target] = acked
		}
		return struct{}{}, err
	}, `SELECT user_id, device_id, target, acked FROM sync_acks`+askedFor, users, names)
	if err != nil {
		return nil, s.explain(err)
	}
	_, err = queryAll(ctx, s.read, func(rows *sql.Rows) (struct{}, error) {
		var who freshen.Requester
		var acked, seen int64
		err := rows.Scan(&who.UserID, &who.DeviceID, &acked, &seen)
		if p := at[who]; p != nil {
			p.Acked, p.SeenAt = acked, fromMillis(seen)
		}
		return struct{}{}, err
	}, `SELECT user_id, device_id, acked, seen_at FROM sync_positions`+askedFor, users, names)
	return all, s.named(err)
}
