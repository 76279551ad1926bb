BEGIN TRANSACTION;
CREATE TABLE books (
	symbol VARCHAR NOT NULL, 
	owner VARCHAR NOT NULL, 
	units FLOAT NOT NULL, 
	mode VARCHAR NOT NULL, 
	flatten_at_ns BIGINT, 
	PRIMARY KEY (symbol)
);
INSERT INTO "books" VALUES('NIFTY','champion:ppo/v1',3.0,'reduce_only',900);
INSERT INTO "books" VALUES('BANKNIFTY','champion:ppo/v1',0.0,'normal',NULL);
CREATE TABLE fence (
	id INTEGER NOT NULL CHECK (id = 1), 
	epoch INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "fence" VALUES(1,2);
CREATE TABLE fills (
	seq INTEGER NOT NULL, 
	order_id VARCHAR NOT NULL, 
	symbol VARCHAR NOT NULL, 
	units FLOAT NOT NULL, 
	price FLOAT NOT NULL, 
	cost FLOAT NOT NULL, 
	bar_ns BIGINT NOT NULL, 
	owner VARCHAR NOT NULL, 
	decision_id VARCHAR NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (order_id), 
	FOREIGN KEY(order_id) REFERENCES orders (order_id)
);
INSERT INTO "fills" VALUES(1,'NIFTY:100','NIFTY',5.0,60.0,0.3,200,'challenger:hrm/v1','d1');
INSERT INTO "fills" VALUES(2,'NIFTY:300','NIFTY',-2.0,70.0,0.14,400,'champion:ppo/v1','d3');
CREATE TABLE handovers (
	seq INTEGER NOT NULL, 
	symbol VARCHAR NOT NULL, 
	from_owner VARCHAR NOT NULL, 
	to_owner VARCHAR NOT NULL, 
	units FLOAT NOT NULL, 
	mode VARCHAR NOT NULL, 
	flatten_at_ns BIGINT, 
	epoch INTEGER NOT NULL, 
	at_ns BIGINT NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "handovers" VALUES(1,'NIFTY','challenger:hrm/v1','champion:ppo/v1',5.0,'reduce_only',900,2,250);
CREATE TABLE intents (
	seq INTEGER NOT NULL, 
	intent_id VARCHAR NOT NULL, 
	symbol VARCHAR NOT NULL, 
	bar_ns BIGINT NOT NULL, 
	reason VARCHAR NOT NULL, 
	order_units FLOAT NOT NULL, 
	champion_from INTEGER NOT NULL, 
	champion_to INTEGER NOT NULL, 
	challenger_from INTEGER NOT NULL, 
	challenger_to INTEGER NOT NULL, 
	model_version VARCHAR NOT NULL, 
	epoch INTEGER NOT NULL, 
	reported BOOLEAN NOT NULL, 
	decision_id VARCHAR NOT NULL, 
	owner VARCHAR NOT NULL, 
	handover VARCHAR, 
	flatten_at_ns BIGINT, 
	PRIMARY KEY (seq), 
	UNIQUE (intent_id)
);
INSERT INTO "intents" VALUES(1,'NIFTY:100','NIFTY',100,'BUY_LONG',5.0,0,0,0,0,'',1,1,'','challenger:hrm/v1',NULL,NULL);
INSERT INTO "intents" VALUES(2,'NIFTY:300','NIFTY',300,'SELL_SHORT',-2.0,0,0,0,0,'',2,1,'','champion:ppo/v1',NULL,NULL);
CREATE TABLE orders (
	seq INTEGER NOT NULL, 
	order_id VARCHAR NOT NULL, 
	symbol VARCHAR NOT NULL, 
	exchange VARCHAR NOT NULL, 
	units FLOAT NOT NULL, 
	owner VARCHAR NOT NULL, 
	epoch INTEGER NOT NULL, 
	decision_id VARCHAR NOT NULL, 
	model_version VARCHAR NOT NULL, 
	algo_id VARCHAR NOT NULL, 
	at_ns BIGINT NOT NULL, 
	bar_ns BIGINT NOT NULL, 
	status VARCHAR NOT NULL, 
	PRIMARY KEY (seq), 
	UNIQUE (order_id)
);
INSERT INTO "orders" VALUES(1,'NIFTY:100','NIFTY','NSE',5.0,'challenger:hrm/v1',1,'d1','v1','hrm-paper',100,100,'filled');
INSERT INTO "orders" VALUES(2,'NIFTY:200','NIFTY','NSE',1.0,'challenger:hrm/v1',1,'d2','v1','hrm-paper',200,200,'cancelled');
INSERT INTO "orders" VALUES(3,'NIFTY:300','NIFTY','NSE',-2.0,'champion:ppo/v1',2,'d3','v1','hrm-paper',300,300,'filled');
INSERT INTO "orders" VALUES(4,'BANKNIFTY:300','BANKNIFTY','NSE',-7.0,'champion:ppo/v1',2,'d3','v1','hrm-paper',300,300,'open');
CREATE TABLE refusals (
	seq INTEGER NOT NULL, 
	order_id VARCHAR NOT NULL, 
	symbol VARCHAR NOT NULL, 
	owner VARCHAR NOT NULL, 
	epoch INTEGER, 
	reason VARCHAR NOT NULL, 
	at_ns BIGINT NOT NULL, 
	PRIMARY KEY (seq)
);
INSERT INTO "refusals" VALUES(1,'NIFTY:400','NIFTY','champion:ppo/v1',2,'raises_exposure',400);
CREATE INDEX ix_intents_symbol ON intents (symbol);
CREATE INDEX ix_orders_rate ON orders (exchange, at_ns);
CREATE INDEX ix_orders_open ON orders (symbol, status);
CREATE INDEX ix_handovers_symbol ON handovers (symbol);
CREATE INDEX ix_fills_symbol ON fills (symbol);
COMMIT;
